"""The protocol of searchers (ask and tell), and what every searcher shares."""
