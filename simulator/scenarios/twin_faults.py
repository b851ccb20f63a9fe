def find_twin_faults(simulation, scenario, **k):
    return []
