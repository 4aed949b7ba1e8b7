"""The parts that the scripts share, in rooms; imports run one way.

    infra < crystals < physics < datasets < networks < evaluation < stages

A room may import from those before it, never from those after it (tests/test_architecture.py). README.md
beside this file says what each one holds.
"""
