import os


# As in train.py: loader workers share the cores with the network.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bifusion_hf.cli.rooms_matrix import main  # noqa: E402


if __name__ == "__main__":
    main()
