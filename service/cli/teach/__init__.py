"""`teach`: make a custom classification head from folders of pictures."""
