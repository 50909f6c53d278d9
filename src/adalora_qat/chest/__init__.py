"""What a radiologist asks of a frontal chest radiograph, from masks. NumPy only."""
