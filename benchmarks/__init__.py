"""What the parts cost by themselves; `rtunnel bench` measures the whole.

python -m pytest benchmarks --benchmark-columns=min,median,ops
"""
