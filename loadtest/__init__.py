"""Load: Locust users and the verdict."""
