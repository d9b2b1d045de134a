from bifusion_hf.cli.predict import main


if __name__ == "__main__":
    main()
