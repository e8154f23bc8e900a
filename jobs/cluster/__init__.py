"""Ray from the side of a job: start or join it, what its nodes hold, and the workers on them."""
