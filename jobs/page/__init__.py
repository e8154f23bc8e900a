"""The page of `jobs.prompt`: its server, session, store, videos, previews, tracking and review."""
