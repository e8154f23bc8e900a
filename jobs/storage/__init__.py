"""Files in local folders and in S3, the cache of a node, and scratch folders of workers."""
