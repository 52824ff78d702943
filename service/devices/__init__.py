"""Device processes: their queue, supervision, retries, and the pixel slots they share with the HTTP process."""
