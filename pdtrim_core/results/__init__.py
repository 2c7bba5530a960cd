"""What a run leaves on disk: files, folders, outcomes."""
