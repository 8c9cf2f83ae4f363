"""The run's page."""


def write_page(run, config, result, history):
    pass
