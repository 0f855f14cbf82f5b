"""One run: pipeline, journal, run folder, resume, dry run, benchmark."""
