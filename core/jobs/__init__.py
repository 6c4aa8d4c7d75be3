"""Running jobs: one detached worker per device, one child process per job, the database as the only channel."""
