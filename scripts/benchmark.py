from bifusion_hf.cli.benchmark import main


if __name__ == "__main__":
    main()
