"""Records on their way to warm lanes and back: packing, the ticket that a job is on its lane, gathering."""
