"""The contracts of OpenAI, Hugging Face and Weaviate, so that their clients can use this service."""
