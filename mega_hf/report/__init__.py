"""Reports of finished runs.

`record` holds the types of result.json and `result` loads it from a run folder; `table`, `plots`
and `card` are functions of the record alone.
"""
