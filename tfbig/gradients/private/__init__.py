"""Private training: DP-SGD as one gradient rule, with its accounting, budget ledger and audit."""
