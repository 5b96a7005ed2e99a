"""The expert stage: members trained on the cluster, their salience, their metrics."""
