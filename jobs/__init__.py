"""What a person or `ray job submit` starts: the only package that knows Ray, URLs and terminals."""
