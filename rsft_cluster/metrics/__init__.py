"""What a run tells Prometheus: `meter.py` names the metrics, `exported.py` hands them to Ray."""
