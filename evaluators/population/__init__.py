"""The population evaluator, and the comparison of its logits with the teacher."""
