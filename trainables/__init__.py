"""The training engine in plain PyTorch: the loop, the tasks and their parts. It knows nothing of Ray or MLflow."""
