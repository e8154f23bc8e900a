"""Files wherever they lie: local folders and S3, the cache of a node, scratch folders of workers."""
