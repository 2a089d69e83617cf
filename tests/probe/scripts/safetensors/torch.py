"""Two functions, of which one calls the other."""


def save_file(tensors, path):
    path.write_bytes(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors.values()))


def save_model(model, path):
    save_file(model.state_dict(), path)
