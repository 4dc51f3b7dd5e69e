"""Encoders on another machine: a SharpZO service, or a server of embeddings in OpenAI's form."""
