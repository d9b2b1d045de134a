from bifusion_hf.cli.prepare_scannet200 import main


if __name__ == "__main__":
    main()
