"""A sweep: its settings, plan, record, rungs and searchers, its trials on Ray Tune, its report."""
