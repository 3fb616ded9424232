"""Re-identification: ranking metrics, model and losses."""
