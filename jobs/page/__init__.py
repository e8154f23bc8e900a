"""The page of `jobs.prompt`: server, session, manifest, videos, previews, tracking and review."""
