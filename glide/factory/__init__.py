"""The factory submits and removes glideins. Each cycle has three steps: observe, plan, apply.

The step `plan` is a pure function that contains the whole policy.
"""
