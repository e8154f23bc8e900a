"""Objects of a mask run, classified: a row a frame and object, and a row a track."""
