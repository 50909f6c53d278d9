"""What a radiologist measures on a frontal chest radiograph, from masks. NumPy only."""
