try:
    from bifusion_hf.cli.check import main
except ImportError as error:
    # A torchvision that does not fit its torch breaks transformers, and with it the package: the first thing to check.
    raise SystemExit(f"failed   import bifusion_hf\n         -> {error}") from None


if __name__ == "__main__":
    main()
