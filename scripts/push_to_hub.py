from bifusion_hf.cli.push_to_hub import main


if __name__ == "__main__":
    main()
