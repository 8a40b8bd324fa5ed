"""Many prompts traced into one folder: resumable, over processes or a Ray cluster, with a summary and a gallery."""
