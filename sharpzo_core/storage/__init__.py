"""Files: the artifact store, prompt files and archives."""
