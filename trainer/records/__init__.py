"""What a run leaves behind of every step, for programs and for people.

    metrics      the records of a run: takes metrics from the devices, writes to the outputs below
    metrics_file, lines      metrics.jsonl, whatever has become of it
    tensorboard  event files
    progress, throughput, words      what is shown while it runs
    timing       timing.json: how long a run has trained
    history      what the files of a run say of it
    figures, panels, curves  report.png and schedule.png
    comparison_figure  several runs in one picture
    hints        what to try when nothing was learned
    profiling    a trace of some steps

Nothing is imported here: `history` and `figures` need no jax, and a report is drawn without it.
"""
