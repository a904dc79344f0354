"""Runs, resumes and aborts a job."""
