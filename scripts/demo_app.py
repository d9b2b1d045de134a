from bifusion_hf.cli.demo_app import main


if __name__ == "__main__":
    main()
