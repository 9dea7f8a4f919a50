"""One module for each thing that is measured; `rtunnel.bench.run` has their names."""
