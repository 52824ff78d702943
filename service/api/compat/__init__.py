"""HTTP contracts of other services, so that their clients work here: OpenAI, Hugging Face, Weaviate."""
