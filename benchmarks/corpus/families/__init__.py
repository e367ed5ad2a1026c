"""Operations by family: each a right gradient, its inputs, and the faults it can have."""
