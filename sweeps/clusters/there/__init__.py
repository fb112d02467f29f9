"""What a cluster runs for somebody elsewhere: `python -m sweeps.clusters.there`, as a job, with our code sent along.

What it is to do lies in a file in its working directory, not in the command, which the list of jobs shows.
"""

ENTRYPOINT = "python -m sweeps.clusters.there"
JOB_FILE = "dreamsweep.job.json"
