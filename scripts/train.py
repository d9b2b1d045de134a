import os


# On a CPU, loader workers share the cores with the network. OpenMP threads that spin while they wait for one another
# then slow both many times over; the library reads this when it is loaded, so it has to come first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bifusion_hf.cli.train import main  # noqa: E402


if __name__ == "__main__":
    main()
