"""What a person should know before a run: pre-flight check, warnings, disk, quantisation table."""
