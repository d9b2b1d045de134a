from bifusion_hf.cli.convert_sv3d import main


if __name__ == "__main__":
    main()
