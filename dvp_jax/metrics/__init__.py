"""Metrics of texts, reliability of confidences, and intervals of rates."""
