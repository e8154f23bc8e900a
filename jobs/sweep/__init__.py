"""A sweep: settings, plan, record and state, early stopping, search, trials on Ray Tune, report."""
