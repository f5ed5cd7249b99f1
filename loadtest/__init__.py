"""Load: Locust users and the verdict; what the core takes by itself."""
