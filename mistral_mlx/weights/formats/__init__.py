"""One module for each file format. Each lists the tensors of a file without reading their data."""
