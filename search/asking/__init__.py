"""The interface of searchers, which ask trials and are told their evaluations, and code that all searchers share."""
